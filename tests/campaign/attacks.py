"""All campaigns, in the order of the page."""

import corruptions
import hostile
import kills
import mutants
from tallies import Campaign

CAMPAIGNS: list[Campaign] = [*kills.CAMPAIGNS, *corruptions.CAMPAIGNS, *hostile.CAMPAIGNS, *mutants.CAMPAIGNS]
