"""What people did with recommendations: written by the server's `feedback` model, read by tuning.

The one room that both sides share: it imports no other room and nothing heavier than SQLAlchemy, so `serving`, the
model inside Triton and `training` may import it without knowing of each other, and the table is written down once.
"""
