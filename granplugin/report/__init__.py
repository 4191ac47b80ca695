"""What is told of a run, an analysis or a verb: values -> a schema (build), a view of it, its form.

schema/ is what is written as JSON, view/ what it says in sections, tables and sentences, render/ one
module for each form. show.py leads from a value's class to its view.
"""
