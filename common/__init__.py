"""What every package uses: command line, config base, files, output folders, seeding, weights.

Imports no other package of the project.
"""
