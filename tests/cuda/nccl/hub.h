// The meeting place of a communicator's ranks: see hub.cpp.
#pragma once
#include <string>

/// Listens at an abstract address of this name, in threads of this process, until all ranks have left.
bool start_hub(const std::string& name);
