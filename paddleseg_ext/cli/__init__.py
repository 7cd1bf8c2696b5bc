"""The commands: flags, screen output and exit codes. The only place that prints."""

import warnings

# Paddle looks for a compiler cache at import and warns; nothing here compiles.
warnings.filterwarnings("ignore", message="No ccache found")
# Paddle says so of every batch norm with explicit statistics.
warnings.filterwarnings("ignore", message="When training, we now always track")
