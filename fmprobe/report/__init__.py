"""Reports: plots and pages made of what `fmprobe.runs` wrote; nothing is computed here."""
