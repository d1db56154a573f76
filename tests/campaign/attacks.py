"""All campaigns, in the order of the page."""

import corruptions
import footprints
import hostile
import kills
import mutants
import nans
import ranks
from tallies import Campaign

MODULES = (kills, ranks, corruptions, hostile, mutants, footprints, nans)
CAMPAIGNS: list[Campaign] = [campaign for module in MODULES for campaign in module.CAMPAIGNS]
