"""All campaigns, in the order of the page."""

import corruptions
import kills
from tallies import Campaign

CAMPAIGNS: list[Campaign] = [*kills.CAMPAIGNS, *corruptions.CAMPAIGNS]
