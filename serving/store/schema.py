"""Which schema this code works with. A test holds it against the migrations."""

# Oldest first. The data plane does not import the migrations, yet must refuse a schema it does not know.
REVISIONS = ("0001", "0002", "0003", "0004")
CURRENT = REVISIONS[-1]
