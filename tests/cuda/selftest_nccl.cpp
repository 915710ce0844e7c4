#include "selftest.h"
const std::vector<Entry> nccl_tests;
