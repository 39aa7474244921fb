"""Recordings, the quantizer and the frames that trainings read."""
