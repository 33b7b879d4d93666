"""The local runner: a job's servers and workers as processes of this machine (`tablebay run`)."""
