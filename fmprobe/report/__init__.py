"""Reports: plots and pages made from what a run left in its folder. Nothing is computed here."""
