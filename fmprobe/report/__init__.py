"""Reports: plots and pages made of what `fmprobe.runs.folder` wrote; nothing is computed here."""
