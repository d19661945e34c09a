// bf16 and f16 of single values.
#pragma once

#include <cstdint>
#include <cstring>

namespace trimtab {

inline float widen_bf16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

// Nearest, ties to even; NaN stays NaN.
inline uint16_t round_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (value != value) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float widen_half(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t rest = static_cast<uint32_t>(bits & 0x7fff) << 13;
  float value;
  std::memcpy(&value, &rest, 4);
  value *= 0x1p112f;  // moves the exponent bias, and makes denormals normal
  uint32_t result;
  std::memcpy(&result, &value, 4);
  if ((bits & 0x7c00) == 0x7c00) result = rest | 0x7f800000;  // infinity, NaN
  result |= sign;
  std::memcpy(&value, &result, 4);
  return value;
}

}  // namespace trimtab
