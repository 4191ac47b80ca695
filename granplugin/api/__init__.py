"""What `import granplugin` offers: the verbs as functions, and those for scripts of one's own."""
