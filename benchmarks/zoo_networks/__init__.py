"""The networks of the zoo: hand-written classics, `transformers` from small configurations, and timm."""
