"""Where results are kept: content keys, whole files, run folders."""
