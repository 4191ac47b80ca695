"""What `import granplugin` offers: the verbs as functions, and three for scripts of one's own."""
