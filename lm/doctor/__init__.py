"""Is this machine, or pod, fit to train?  Checks that measure, judge and say what to mend."""
