"""Write docs/methods anew: pages, figures, index. Files there that no method has any more are removed."""

import sys

from tests.reference.write import FOLDER, documents, stray, write

if __name__ == "__main__":
    texts = documents()
    removed = stray(texts)
    for path in removed:
        path.unlink()
    changed = write(texts)
    print(f"{FOLDER}: {len(texts)} files, {len(changed)} changed, {len(removed)} removed", file=sys.stderr)
