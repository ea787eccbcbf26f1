// Checksums of slots.
#pragma once
#include "lanes.h"

namespace {

// CRC-32 (IEEE 802.3, as zlib.crc32).
struct Tables {
  uint32_t at[8][256];
  Tables() {
    for (uint32_t i = 0; i < 256; i++) {
      uint32_t c = i;
      for (int k = 0; k < 8; k++) c = c >> 1 ^ (c & 1 ? 0xedb88320u : 0);
      at[0][i] = c;
    }
    for (int k = 1; k < 8; k++)
      for (int i = 0; i < 256; i++) at[k][i] = at[k - 1][i] >> 8 ^ at[0][at[k - 1][i] & 255];
  }
};

uint32_t crc_table(uint32_t crc, const uint8_t* data, int64_t size) {
  static const Tables t;
  for (; size >= 8; data += 8, size -= 8) {
    const uint64_t w = load<uint64_t>(data) ^ crc;
    crc = t.at[7][w & 255] ^ t.at[6][w >> 8 & 255] ^ t.at[5][w >> 16 & 255] ^ t.at[4][w >> 24 & 255] ^ t.at[3][w >> 32 & 255] ^
          t.at[2][w >> 40 & 255] ^ t.at[1][w >> 48 & 255] ^ t.at[0][w >> 56];
  }
  for (; size > 0; data++, size--) crc = crc >> 8 ^ t.at[0][(crc ^ *data) & 255];
  return crc;
}

#if defined(__PCLMUL__) && defined(__SSE4_1__)
inline __m128i fold(__m128i x, __m128i k, __m128i next) {
  return _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(x, k, 0x00), _mm_clmulepi64_si128(x, k, 0x11)), next);
}

// Folding by carry-less multiplication (Gopal et al., Intel 2009; reflected constants), 64 bytes a step. size: 64 or more, in 16s.
uint32_t crc_fold(uint32_t crc, const uint8_t* data, int64_t size) {
  const __m128i by64 = _mm_set_epi64x(0x01c6e41596, 0x0154442bd4), by16 = _mm_set_epi64x(0x00ccaa009e, 0x01751997d0);
  const __m128i by8 = _mm_set_epi64x(0, 0x0163cd6124), barrett = _mm_set_epi64x(0x01f7011641, 0x01db710641);
  const __m128i low = _mm_setr_epi32(~0, 0, ~0, 0);
  const auto* p = reinterpret_cast<const __m128i*>(data);
  __m128i x[4];
  for (int i = 0; i < 4; i++) x[i] = _mm_loadu_si128(p++);
  x[0] = _mm_xor_si128(x[0], _mm_cvtsi32_si128(int(crc)));
  for (size -= 64; size >= 64; size -= 64)
    for (int i = 0; i < 4; i++) x[i] = fold(x[i], by64, _mm_loadu_si128(p++));
  __m128i y = x[0];
  for (int i = 1; i < 4; i++) y = fold(y, by16, x[i]);
  for (; size >= 16; size -= 16) y = fold(y, by16, _mm_loadu_si128(p++));
  y = _mm_xor_si128(_mm_srli_si128(y, 8), _mm_clmulepi64_si128(y, by16, 0x10));
  y = _mm_xor_si128(_mm_srli_si128(y, 4), _mm_clmulepi64_si128(_mm_and_si128(y, low), by8, 0x00));
  __m128i z = _mm_and_si128(_mm_clmulepi64_si128(_mm_and_si128(y, low), barrett, 0x10), low);
  return uint32_t(_mm_extract_epi32(_mm_xor_si128(y, _mm_clmulepi64_si128(z, barrett, 0x00)), 1));
}
#endif

uint32_t crc32(const uint8_t* data, int64_t size) {
  uint32_t crc = ~0u;
#if defined(__PCLMUL__) && defined(__SSE4_1__)
  if (size >= 64) {
    const int64_t whole = size / 16 * 16;
    crc = crc_fold(crc, data, whole);
    data += whole, size -= whole;
  }
#endif
  return ~crc_table(crc, data, size);
}

}  // namespace
