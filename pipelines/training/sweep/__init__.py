"""Many short trainings over one cache, on Ray Tune, and which of them was best."""
