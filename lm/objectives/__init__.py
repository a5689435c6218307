"""What is predicted: how a row is prepared on the host, and its loss on the device."""
