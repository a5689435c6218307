.PHONY: quickstart
