"""Data sets of images with boxes of objects, in the layouts of Pascal VOC and COCO."""
