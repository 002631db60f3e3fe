"""Python-based backends: they answer for a native backend's name where the embedded server has no native one."""
