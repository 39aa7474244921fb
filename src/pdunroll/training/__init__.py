"""The network, its training, and the folder that a training leaves."""
