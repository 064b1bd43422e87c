"""The embedded base: the pictures that it is trained on, the training itself, the judge, and `python train.py demo`."""
