// Element types of NCCL and the arithmetic of its reductions.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <vector>

/// 0 when the type is not known.
size_t bytes_of_type(int type);
const char* name_of_type(int type);
/// Whether the operation is one of the five.
bool is_operation(int operation);
/// total = total (operation) other, element by element.
void reduce(int type, int operation, void* total, const void* other, size_t count);
/// What an average does after the last rank.
void divide(int type, void* total, size_t count, int ranks);
