"""What a run needs and how fast it can be, known before any accelerator is paid for."""
