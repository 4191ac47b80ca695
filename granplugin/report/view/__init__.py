"""What a report says, without a form: one function for each schema, and the elements they use.

A view is a Section (elements.py). Terminal, Markdown and HTML are renderers of any view, in
granplugin.report.render.
"""
