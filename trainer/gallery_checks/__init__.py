"""What the gallery check measures and judges; `trainer/gallery_check.py` puts it together."""
