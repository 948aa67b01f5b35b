"""An evaluation as a page to read and to listen to: tables, and the worst answers beside the sound they are about."""
