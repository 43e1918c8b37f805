"""Rankings and judgments -> measures, significance, calibration."""
