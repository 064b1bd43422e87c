"""One module per backend. Only here may a host, diffusers or a web framework be imported, and only inside functions."""
