/* Resizing of uint8 images with three channels, for vit_jax/data/pixels.py.

   No library for Python has these two resizes with the pixels of the published
   recipes and the speed of the processor: Pillow computes one number at a time,
   and OpenCV rounds differently than TensorFlow. setup.py compiles this file
   where there is a C compiler, which makes vectors of the innermost loops. */

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Compiled once for each of these kinds of processor, and the widest one that the
   processor has is called. */
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#define FAST __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FAST
#endif
#define INLINE static inline __attribute__((always_inline))

enum {
  CHANNELS = 3,
  PADDED = 4, /* bytes of a pixel when it is copied at once */
  ROWS = 4,   /* rows of an image that are resized together */
  LANES = ROWS * PADDED, /* numbers that are computed together */
  BITS = 22 /* weights are multiples of 2^-22, as Pillow's */
};

/* Of one axis: pixel i of the result is the sum of weights[i * taps + t] times
   pixel first[i] + t of the image, divided by 2^22. */
typedef struct {
  int32_t size; /* of the result */
  int32_t taps;
  const int32_t *first;
  const int32_t *weights;
} axis;

/* Adds LANES bytes, times a weight, to the sums. */
INLINE void add(int32_t *sums, const uint8_t *bytes, int32_t weight) {
  for (int i = 0; i < LANES; i++) sums[i] += bytes[i] * weight;
}

/* Begins sums with a half, so that the division rounds. */
INLINE void begin(int32_t *sums) {
  for (int i = 0; i < LANES; i++) sums[i] = 1 << (BITS - 1);
}

/* Divides by 2^22 and limits to [0, 255]. */
INLINE void end(uint8_t *to, const int32_t *sums) {
  for (int i = 0; i < LANES; i++) {
    const int32_t value = sums[i] >> BITS;
    const int32_t positive = value < 0 ? 0 : value;
    to[i] = positive > 255 ? 255 : positive;
  }
}

/* Copies a row of pixels, each to four of LANES bytes, beside which other rows
   have their places. What the fourth byte gets is not used. */
INLINE void interleave(const uint8_t *row, int32_t width, uint8_t *to) {
  for (int32_t x = 0; x < width - 1; x++)
    memcpy(to + (size_t)x * LANES, row + x * CHANNELS, PADDED);
  /* The image may end after the last pixel. */
  memcpy(to + (size_t)(width - 1) * LANES, row + (width - 1) * CHANNELS,
         CHANNELS);
}

/* Resizes ROWS rows along their length. `padded` has them as [x][row][4 bytes];
   so does the result. */
INLINE void along_rows(const uint8_t *padded, axis columns, uint8_t *result) {
  for (int32_t x = 0; x < columns.size; x++) {
    const uint8_t *from = padded + (size_t)columns.first[x] * LANES;
    const int32_t *weights = columns.weights + (size_t)x * columns.taps;
    int32_t sums[LANES];
    begin(sums);
    for (int32_t t = 0; t < columns.taps; t++)
      add(sums, from + t * LANES, weights[t]);
    end(result + (size_t)x * LANES, sums);
  }
}

/* Resizes along the columns: one row of `width` bytes from the rows below
   `from`, whose memory goes on for at least LANES bytes after the last one. */
INLINE void along_columns(const uint8_t *from, size_t width,
                          const int32_t *weights, int32_t taps, uint8_t *to) {
  for (size_t i = 0; i < width; i += LANES) {
    int32_t sums[LANES];
    begin(sums);
    for (int32_t t = 0; t < taps; t++)
      add(sums, from + t * width + i, weights[t]);
    uint8_t bytes[LANES];
    end(bytes, sums);
    memcpy(to + i, bytes, width - i < LANES ? width - i : LANES);
  }
}

/* Resizes by any kernel, first along the rows, rounds to bytes, and then along
   the columns, as Pillow does.

   image: `height` rows of `width` pixels of three bytes, `stride` bytes apart.
   result: rows.size rows of columns.size pixels, without gaps.
   Returns 0, or 1 if there is no memory. */
FAST int vit_jax_resample(const uint8_t *image, int32_t height, int32_t width,
                          ptrdiff_t stride, axis columns, axis rows,
                          uint8_t *result) {
  const size_t pixel = LANES;
  const size_t wide = (size_t)columns.size * CHANNELS;
  uint8_t *padded = malloc(width * pixel);
  uint8_t *resized = malloc(columns.size * pixel);
  uint8_t *all = malloc(height * wide + LANES);
  const int failed = !padded || !resized || !all;
  for (int32_t y = 0; y < height && !failed; y += ROWS) {
    const int32_t count = height - y < ROWS ? height - y : ROWS;
    for (int32_t r = 0; r < count; r++)
      interleave(image + (y + r) * stride, width, padded + r * PADDED);
    along_rows(padded, columns, resized);
    for (int32_t r = 0; r < count; r++) {
      const uint8_t *from = resized + r * PADDED;
      uint8_t *to = all + (y + r) * wide;
      /* The fourth byte is overwritten by the next pixel and the next row. */
      for (int32_t x = 0; x < columns.size; x++)
        memcpy(to + x * CHANNELS, from + x * pixel, PADDED);
    }
  }
  for (int32_t y = 0; y < rows.size && !failed; y++)
    along_columns(all + rows.first[y] * wide, wide,
                  rows.weights + (size_t)y * rows.taps, rows.taps,
                  result + y * wide);
  free(padded);
  free(resized);
  free(all);
  return failed;
}

/* Of one axis: pixel i of the result lies between pixels low[i] and high[i] of
   the image, by the fraction[i] of the way. */
typedef struct {
  int32_t size;
  const int32_t *low;
  const int32_t *high;
  const float *fraction;
} line;

/* One row, resized along its length. Memory goes on for one number behind `row`
   and behind `result`, for the fourth of the last pixel. */
INLINE void linear_row(const float *row, line columns, float *result) {
  for (int32_t x = 0; x < columns.size; x++) {
    const float *low = row + (size_t)columns.low[x] * CHANNELS;
    const float *high = row + (size_t)columns.high[x] * CHANNELS;
    float pixel[PADDED];
    for (int c = 0; c < PADDED; c++)
      pixel[c] = low[c] + (high[c] - low[c]) * columns.fraction[x];
    memcpy(result + (size_t)x * CHANNELS, pixel, sizeof pixel);
  }
}

/* Resizes linearly without antialias, along the rows and then the columns, in
   float32 and TensorFlow's order of operations.

   image, width, stride: as above.
   bytes: the result as uint8, truncated; or NULL.
   floats: the result as float32; used if `bytes` is NULL.
   Returns 0, or 1 if there is no memory. */
FAST int vit_jax_bilinear(const uint8_t *image, int32_t width, ptrdiff_t stride,
                          line columns, line rows, uint8_t *bytes,
                          float *floats) {
  const size_t length = (size_t)width * CHANNELS;
  const size_t wide = (size_t)columns.size * CHANNELS;
  float *row = calloc(length + 1, sizeof *row);
  float *memory = malloc(2 * (wide + 1) * sizeof *memory);
  const int failed = !row || !memory;
  /* The resized rows of the image that were used last, and their numbers. */
  float *kept[2] = {memory, failed ? NULL : memory + wide + 1};
  int32_t number[2] = {-1, -1};
  for (int32_t y = 0; y < rows.size && !failed; y++) {
    const int32_t needed[2] = {rows.low[y], rows.high[y]};
    if (number[1] == needed[0]) {
      float *other = kept[0];
      kept[0] = kept[1], kept[1] = other;
      number[1] = number[0], number[0] = needed[0];
    }
    for (int k = 0; k < 2; k++)
      if (number[k] != needed[k]) {
        const uint8_t *from = image + needed[k] * stride;
        for (size_t i = 0; i < length; i++) row[i] = from[i];
        linear_row(row, columns, kept[k]);
        number[k] = needed[k];
      }
    const float *low = kept[0], *high = kept[1];
    const float fraction = rows.fraction[y];
    for (size_t i = 0; i < wide; i++) {
      const float value = low[i] + (high[i] - low[i]) * fraction;
      if (bytes)
        bytes[y * wide + i] = (uint8_t)(int32_t)value;
      else
        floats[y * wide + i] = value;
    }
  }
  free(row);
  free(memory);
  return failed;
}
