"""What each kernel of `make lab` and of the hub runs first: errors say one sentence also where the first cells were not run."""

import helpers

del helpers
