"""The tasks that come with the package; each is imported when it is asked for."""
