"""What differs between two sets of images, measured on their pixels alone, and how the input is moved; numpy, no model.

``statistics`` and ``spectra`` describe one set, ``compare`` two; ``alignment`` and its methods change images.
"""
