"""The tiny models that come with saccade: plain `from_pretrained` folders."""
