"""The core: everything that needs no host. Only `trainer/hosts/` may import a host or a web framework."""
