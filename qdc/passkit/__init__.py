"""What passes are made of: one import for whoever writes one."""
