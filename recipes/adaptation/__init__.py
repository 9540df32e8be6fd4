"""Move an adapter to new images without labels and without the images it was trained on (source-free).

    samgraft adapt --adapter source.graft --data TARGET_IMAGES -o adapted.graft

``config`` the settings, ``images`` finds the target's pictures (never their labels), ``networks`` holds source, teacher
and student on one backbone, ``pseudo`` and ``regions`` make labels of the teacher's answers, ``terms`` are the losses,
``criteria`` judge without labels, ``loop`` is one round, ``run`` is the whole with its guard, ``page`` the report.
"""
