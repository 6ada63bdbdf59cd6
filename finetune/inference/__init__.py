"""Inference with a trained checkpoint: predictions, scores, calibration, Grad-CAM and export."""
