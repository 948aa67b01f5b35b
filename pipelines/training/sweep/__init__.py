"""Many short trainings over one cache, and which of them was best."""
