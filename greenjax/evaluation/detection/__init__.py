"""The accuracy of a detector, by COCO's rules: `results` (what it finds), `precision` (how good that is)."""
