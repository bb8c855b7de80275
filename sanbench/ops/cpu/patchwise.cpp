#include "tile.h"
#ifdef PORTABLE
#endif
