"""Rasters larger than memory: tiles, the objects found in them, and how objects are joined across seams.

``plan`` lays tiles over the raster, ``found`` is what one tile shows, ``link`` says which objects of two neighbouring
tiles are one, ``reduce`` turns such pairs into groups and groups into numbers, ``frontier`` walks over the tiles in
order and gives every object as soon as it is complete. Nothing here knows a model, a file format of rasters or an
executor.
"""
