"""The explorer: a page on this machine, or a napari window, that shows a finished run and writes subsets and states."""
