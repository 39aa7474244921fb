"""The network, its training, and the folders of trainings."""
