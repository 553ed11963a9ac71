"""What must be there in an AWS account before `ray up`: made, checked and removed again.

Each piece is a file (`network`, `file_system`, `bucket`, `roles`), which knows how to look for
itself, make what is missing of it, and go away. `command` asks them in order. None of it needs
Ray, but `preference`, which Ray's autoscaler loads.
"""
