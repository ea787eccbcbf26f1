// Vectors of LANES floats and the few conversions that compilers do badly from portable code: AVX-512, AVX2, and plain GCC vectors for others.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__SSE4_1__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define ABKT_AVX512
constexpr int LANES = 16;
#elif defined(__AVX2__)
#define ABKT_AVX2
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float F __attribute__((vector_size(4 * LANES)));
typedef int32_t I __attribute__((vector_size(4 * LANES)));
typedef uint32_t U __attribute__((vector_size(4 * LANES)));

template <class V> inline V load(const void* from) { V v; std::memcpy(&v, from, sizeof v); return v; }
template <class V> inline void store(void* to, V v) { std::memcpy(to, &v, sizeof v); }
inline F splat(float x) { return F{} + x; }
#if defined(ABKT_AVX512)
inline F least(F a, F b) { return (F)_mm512_min_ps((__m512)a, (__m512)b); }
inline F greatest(F a, F b) { return (F)_mm512_max_ps((__m512)a, (__m512)b); }
#else
inline F least(F a, F b) { return a < b ? a : b; }
inline F greatest(F a, F b) { return a > b ? a : b; }
#endif
inline F to_float(I v) { return __builtin_convertvector(v, F); }
inline I to_int(F v) { return __builtin_convertvector(v, I); }  // towards 0

template <class V, class G> inline auto across(V v, G join) {  // one value from all lanes
  I lane;
  for (int i = 0; i < LANES; i++) lane[i] = i;
  for (int half = LANES / 2; half; half /= 2) v = join(v, __builtin_shuffle(v, lane ^ half));
  return v[0];
}
template <class V> inline auto total(V v) { return across(v, [](V a, V b) { return a + b; }); }

#if defined(ABKT_AVX512)
inline U widen(const uint16_t* from) { return (U)_mm512_cvtepu16_epi32(load<__m256i>(from)); }
inline I widen(const uint8_t* from) { return (I)_mm512_cvtepu8_epi32(load<__m128i>(from)); }
inline void narrow(uint16_t* to, U v) { store(to, _mm512_cvtepi32_epi16((__m512i)v)); }
inline void narrow(uint8_t* to, I v) { store(to, _mm512_cvtepi32_epi8((__m512i)v)); }
inline F widen(const _Float16* from) { return (F)_mm512_cvtph_ps(load<__m256i>(from)); }
inline void narrow(_Float16* to, F v) { store(to, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT)); }
inline F round_half(F v) { return (F)_mm512_cvtph_ps(_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT)); }
#elif defined(ABKT_AVX2)
inline U widen(const uint16_t* from) { return (U)_mm256_cvtepu16_epi32(load<__m128i>(from)); }
inline I widen(const uint8_t* from) { return (I)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from)); }
inline __m128i narrow_words(__m256i v) { return _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)); }
inline void narrow(uint16_t* to, U v) { store(to, narrow_words((__m256i)v)); }
inline void narrow(uint8_t* to, I v) { _mm_storel_epi64((__m128i*)to, _mm_packus_epi16(narrow_words((__m256i)v), __m128i{})); }
#else
template <class T, class V> inline void narrow_plain(T* to, V v) { for (int i = 0; i < LANES; i++) to[i] = T(v[i]); }
inline U widen(const uint16_t* from) { U v; for (int i = 0; i < LANES; i++) v[i] = from[i]; return v; }
inline I widen(const uint8_t* from) { I v; for (int i = 0; i < LANES; i++) v[i] = from[i]; return v; }
inline void narrow(uint16_t* to, U v) { narrow_plain(to, v); }
inline void narrow(uint8_t* to, I v) { narrow_plain(to, v); }
#endif

#if defined(ABKT_AVX2) && defined(__F16C__)
inline F widen(const _Float16* from) { return (F)_mm256_cvtph_ps(load<__m128i>(from)); }
inline void narrow(_Float16* to, F v) { store(to, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT)); }
inline F round_half(F v) { return (F)_mm256_cvtph_ps(_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT)); }
#elif !defined(ABKT_AVX512)
inline F widen(const _Float16* from) { F v; for (int i = 0; i < LANES; i++) v[i] = float(from[i]); return v; }
inline void narrow(_Float16* to, F v) { for (int i = 0; i < LANES; i++) to[i] = _Float16(v[i]); }
inline F round_half(F v) { for (int i = 0; i < LANES; i++) v[i] = float(_Float16(v[i])); return v; }
#endif
